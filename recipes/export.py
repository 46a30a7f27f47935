"""`hf-robust-transfer export` as a script: `python recipes/export.py …`."""

from hf_robust_transfer.cli.main import run_script

if __name__ == "__main__":
    run_script(__file__)
