"""How good a run is: each module measures one thing and returns plain numbers; evaluate.py reports them."""
