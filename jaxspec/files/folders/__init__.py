"""Markets on disk: folders of segments and versions that change without being rewritten.

`market_folder` is what users open. `changes` and `commits` write; `versions` and `segments` say
what a folder consists of; `contents` and `stored_arrays` read rows; `verification` and `row_checks`
check them; `whole_market` and `extension_files` give `save` and `load` to markets and indexes.
"""

from jaxspec.files.folders.contents import Blocks
from jaxspec.files.folders.market_folder import MarketFolder
from jaxspec.files.folders.versions import VersionInfo

__all__ = ["Blocks", "MarketFolder", "VersionInfo"]
