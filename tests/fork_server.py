"""Trains in a child for every line of flags: a child that is forked from a process which has imported
everything starts at once, where a new Python takes seconds. Tells the child's number, then its exit code.
"""

import json
import os
import sys
import traceback

import torch
import torch.utils.tensorboard  # which a run imports late

import train


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                train.main(json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
