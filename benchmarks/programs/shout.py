"""Answers each key with its upper case, on a terminal in raw mode, until `q` or the end of input.

Upper case, so that an echo by any terminal on the way can't be taken for the program's answer.
"""

import os
import termios
import tty


def main() -> None:
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        os.write(1, b"READY")
        while (keys := os.read(0, 1024)) and keys != b"q":
            os.write(1, keys.upper())
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


if __name__ == "__main__":
    main()
