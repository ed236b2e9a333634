"""Files: specifications, spaces and markets on disk, and files of the package `learnware`.

Every file of this package that calls `register_format` gives its class `save` and `load`: all of
them are imported here. `MarketFolder` is a market on disk that is read in parts and changed,
`UsersFile` a file of many users; `from_learnware` and `to_learnware` exchange reduced sets with
another package; `sign_file` and `signer_of` say who submitted a file. What a file holds is data:
it is checked before use, and never run.
"""

import importlib
import pkgutil

from jaxspec.files.folders import Blocks, MarketFolder, VersionInfo
from jaxspec.files.learnware import from_learnware, from_learnware_folder, to_learnware
from jaxspec.files.regular_files import seems_to_be
from jaxspec.files.signatures import sign_file, signer_of
from jaxspec.files.specification_files import read_user_arrays
from jaxspec.files.users_file import UsersFile, is_users_file
from jaxspec.files.users_writer import save_users

__all__ = [
    "Blocks",
    "MarketFolder",
    "UsersFile",
    "VersionInfo",
    "from_learnware",
    "from_learnware_folder",
    "is_users_file",
    "read_user_arrays",
    "save_users",
    "seems_to_be",
    "sign_file",
    "signer_of",
    "to_learnware",
]

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
