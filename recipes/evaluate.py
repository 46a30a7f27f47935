"""`hf-robust-transfer evaluate` as a script: `accelerate launch recipes/evaluate.py …`."""

from hf_robust_transfer.cli.main import run_script

if __name__ == "__main__":
    run_script(__file__)
