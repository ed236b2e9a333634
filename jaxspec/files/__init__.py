"""Files: specifications, spaces and markets on disk, and files of the package `learnware`.

`save` and `load` of `Specification`, `UserSpecification`, `Space` and `Market` are registered here.
`MarketFolder` reads a saved market in parts; `from_learnware` and `to_learnware` exchange reduced
sets with another package; `sign_file` and `signer_of` say who submitted a file. What a file holds
is data: it is checked before use, and never run.
"""

from jaxspec.base import register_format
from jaxspec.files.learnware import from_learnware, from_learnware_folder, to_learnware
from jaxspec.files.market_folder import load_market, save_market
from jaxspec.files.reader import Blocks, MarketFolder
from jaxspec.files.regular_files import seems_to_be
from jaxspec.files.signatures import sign_file, signer_of
from jaxspec.files.specification_files import (
    load_space,
    load_specification,
    load_user_specification,
    save_space,
    save_specification,
    save_user_specification,
)
from jaxspec.market import Market
from jaxspec.specify import Space, Specification, UserSpecification

__all__ = [
    "Blocks",
    "MarketFolder",
    "from_learnware",
    "from_learnware_folder",
    "seems_to_be",
    "sign_file",
    "signer_of",
    "to_learnware",
]

register_format(Specification, save=save_specification, load=load_specification)
register_format(UserSpecification, save=save_user_specification, load=load_user_specification)
register_format(Space, save=save_space, load=load_space)
register_format(Market, save=save_market, load=load_market)
