"""Sparse coding: the dictionary of concepts, learning it, and targets for students."""
