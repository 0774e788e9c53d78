"""`python -m mmfusion` is the command `mmfusion`."""

from mmfusion.cli import main

if __name__ == "__main__":
    main()
