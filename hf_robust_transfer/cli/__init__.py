"""The commands, a module each: ``hf-robust-transfer finetune …`` is `finetune.main`."""

from .threads import use_threads

use_threads()  # here, because a command's module loads torch before anything else of it runs
