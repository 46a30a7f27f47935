"""Show what features and decoded images are kept for later runs, and delete them.

hf-robust-transfer cache --limit 5GB
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from ..cache_folder import DEFAULT_FOLDER, cached_files, parse_size, trim
from .main import run_command
from .parsing import parse_arguments


@dataclass
class CacheArguments:
    """Which folder, and what to delete of it."""

    group: ClassVar[str] = "parameters that control the cache"

    feature_cache_dir: str = field(default=DEFAULT_FOLDER, metadata={"help": "The folder."})
    limit: str | None = field(
        default=None, metadata={"help": "Delete the least recently used until the others take no more than this, like 5GB."}
    )
    clear: bool = field(default=False, metadata={"help": "Delete all that no run is using."})


def main(argv: Sequence[str]) -> None:
    """Parse, delete what is asked for, list the rest."""
    (args,) = parse_arguments(
        "hf-robust-transfer cache",
        [CacheArguments],
        "Features that cannot change, and decoded images, are kept for later runs. List them, and delete them.",
        argv,
    )
    if args.clear or args.limit is not None:
        limit = 0.0 if args.clear else parse_size(args.limit, "--limit")
        deleted = trim(args.feature_cache_dir, limit)
        print(f"deleted {len(deleted)} files, {sum(file.size for file in deleted) / 1e6:,.1f} MB")
    files = cached_files(args.feature_cache_dir)
    for file in files:
        used = datetime.fromtimestamp(file.used).isoformat(" ", "minutes")
        print(f"{file.size / 1e6:>12,.1f} MB  last used {used}  {file.path.name}")
    print(f"{sum(file.size for file in files) / 1e6:>12,.1f} MB in {len(files)} files in {args.feature_cache_dir}")


if __name__ == "__main__":
    run_command("cache")
