"""Every table, one file a feature; importing this package declares them all on `schema.metadata`."""

import importlib
import pkgutil

for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
