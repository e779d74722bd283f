"""`python -m deepseek.cli`: the same as `deepseek`."""

from deepseek.cli.app import main

if __name__ == "__main__":
    main()
