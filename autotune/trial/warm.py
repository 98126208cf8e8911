"""Imported once, by the warm parent: everything that is slow to import and safe to share by fork.

The fork server is told to import this module, which imports what `AUTOTUNE_WARM` names. Libraries
log, as they load, what they cannot use on this machine; the warm parent's standard error is the
user's terminal, so they are kept quiet here. A name that does not import is said, since the fork
server itself would say nothing and every trial would be slow.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings

VARIABLE = "AUTOTUNE_WARM"
"""Environment variable with the names of the modules, separated by blanks."""


def import_quietly(names: list[str]) -> None:
    """Import modules without what they log or warn of."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names:
                try:
                    importlib.import_module(name)
                except ImportError as error:
                    print(f"autotune: {name} cannot be imported: {error}", file=sys.stderr)
    finally:
        logging.disable(before)


import_quietly(os.environ.get(VARIABLE, "").split())
