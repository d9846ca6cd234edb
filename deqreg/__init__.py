"""Deformable image registration as a fixed point."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deqreg.register import register, save
    from deqreg.registration import LevelReport, Progress, Registration

__all__ = ["LevelReport", "Progress", "Registration", "register", "save"]

_MODULES = {"register": ("register", "save"), "registration": ("LevelReport", "Progress", "Registration")}
_HOMES = {name: f"deqreg.{module}" for module, names in _MODULES.items() for name in names}
_ROOMS = ("equilibrium", "io", "metrics", "nets", "ops", "report", "spatial", "transforms")


class _Package(ModuleType):
    """This module, which imports a part when it is asked for it: `deqreg --help` does not wait for torch."""

    def __getattr__(self, name: str) -> Any:
        if name in _ROOMS:
            return import_module(f"deqreg.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'deqreg' has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # importing the module deqreg.register binds it here, where everybody expects the function of that name
        if name == "register" and isinstance(value, ModuleType):
            value = value.register
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__, *_ROOMS})


sys.modules[__name__].__class__ = _Package
