"""From pictures on disk to the features Z that specifications are made of.

Three steps live here: `picture_folder` lists and loads pictures, `efficientnet` extracts public
features from them, and `projection` centres features and reduces their dimension without labels:

    folder = scan_domains(root)                                  # root/domain/class/picture
    pictures = load_pictures(folder, indices, 224)               # (n, 224, 224, 3) uint8
    raw = efficientnet_features(pictures)                        # (n, 1280) float32
    to_market = center_and_project(public_raw, components=64)    # fitted once, without labels
    Z = to_market.apply(raw)                                     # (n, 64)

Pillow and torch are optional and are imported only by the functions that need them. Nothing here
downloads anything, looks at labels, or changes its inputs.
"""

from jaxspec.extractors.efficientnet import efficientnet_features
from jaxspec.extractors.picture_folder import PictureFolder, load_pictures, scan_domains
from jaxspec.extractors.projection import Projection, center_and_project

__all__ = [
    "PictureFolder",
    "Projection",
    "center_and_project",
    "efficientnet_features",
    "load_pictures",
    "scan_domains",
]
