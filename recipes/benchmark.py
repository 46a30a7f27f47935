"""How fast this package attacks, evaluates and trains, beside other libraries: same model, images and process.

    python recipes/benchmark.py --model_name_or_path outputs/source --natural_model_name_or_path outputs/natural \\
        --dataset_name cifar10 --transfer_dataset_name my/images --output benchmark.json

The others are an extra: pip install 'hf-robust-transfer[benchmark]' && pip install --no-deps torchattacks
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a package, and not with this folder on the path, where evaluate.py would hide the library of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from recipes.benchmark.main import main

    main()
