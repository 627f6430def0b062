"""Rules by operator family: what each operator means for the axes around it.

Importing this package imports every file in it, and with that registers every rule.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
