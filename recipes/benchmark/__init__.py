"""How fast this package attacks, evaluates and trains, beside other libraries: same model, images and process."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own messages; before torch is imported
