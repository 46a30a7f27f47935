"""``import hf_robust_transfer`` is enough for timm to know this package's architectures; it does not import timm itself."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_REGISTRY, _ARCHITECTURES = "timm.models", "hf_robust_transfer.modeling.cifar"


class _WhenTimmIsImported(MetaPathFinder):
    """Finds nothing itself: sees to it that the architectures are imported right after timm's own."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            import_module(_ARCHITECTURES)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_architectures() -> None:
    """Make ``cifar_resnet18`` and ``cifar_wrn`` known to timm, now or as soon as it is imported."""
    if _REGISTRY in sys.modules:
        import_module(_ARCHITECTURES)
    else:
        sys.meta_path.insert(0, _WhenTimmIsImported())
