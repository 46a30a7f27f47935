"""``python -m hf_robust_transfer.cli COMMAND …``."""

from .main import main

if __name__ == "__main__":
    main()
