"""Files: specifications, spaces and markets on disk, and files of the package `learnware`.

`save` and `load` of `Specification`, `UserSpecification`, `Space` and `Market` are registered here.
`MarketFolder` reads a saved market in parts, `UsersFile` a file of many users; `from_learnware` and
`to_learnware` exchange reduced sets with another package. What a file holds is data: it is checked
before use, and never run.
"""

from jaxspec.base import register_format
from jaxspec.files.learnware import from_learnware, to_learnware
from jaxspec.files.market_folder import load_market, save_market
from jaxspec.files.reader import Blocks, MarketFolder
from jaxspec.files.specification_files import (
    load_space,
    load_specification,
    load_user_specification,
    read_user_arrays,
    save_space,
    save_specification,
    save_user_specification,
)
from jaxspec.files.users_file import UsersFile, is_users_file
from jaxspec.files.users_writer import save_users
from jaxspec.market import Market
from jaxspec.specify import Space, Specification, UserSpecification

__all__ = [
    "Blocks",
    "MarketFolder",
    "UsersFile",
    "from_learnware",
    "is_users_file",
    "read_user_arrays",
    "save_users",
    "to_learnware",
]

register_format(Specification, save=save_specification, load=load_specification)
register_format(UserSpecification, save=save_user_specification, load=load_user_specification)
register_format(Space, save=save_space, load=load_space)
register_format(Market, save=save_market, load=load_market)
