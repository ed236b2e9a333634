"""Scores of all learnwares of a market, in one vectorised pass.

`methods` holds the scores as objects; `market_pass` gathers the evidence that they look at;
`embedding_pass` (on GPUs `pallas_pass`, whose program is in `pallas_kernel`) compares mean
embeddings; `class_pass` compares class vectors (`class_vectors`) and proxies (`leave_one_out`);
`chunk_loop` goes over the rows; `peers` finds the learnware nearest to a user; `sharded` runs the
pass on one device or a mesh, with what goes there and back packed by `host_transfer`. Everything
here is a function of arrays: nothing knows ids, names or files.
"""

from jaxspec.scoring.class_pass import compare_classes
from jaxspec.scoring.embedding_pass import embedding_products, pack_columns
from jaxspec.scoring.host_transfer import (
    PackedLayout,
    pack,
    pack_scores,
    unpack,
    unpack_scores,
)
from jaxspec.scoring.market_pass import (
    Embedded,
    embed,
    gather,
    score_arrays,
    score_rows,
    summarise_classes,
)
from jaxspec.scoring.methods import (
    METHODS,
    Classwise,
    Likelihood,
    Rkme,
    Score,
    Transfer,
    as_score,
    evaluate,
    needs_labels,
    needs_peers,
    needs_proxies,
)
from jaxspec.scoring.peers import best_agreement, find_peers
from jaxspec.scoring.sharded import best_scores, compared_rows, score_all, start_best_scores
from jaxspec.scoring.types import (
    MIN_PADDED_POINTS,
    ClassEvidence,
    Evidence,
    Peers,
    Scores,
    UserArrays,
)

__all__ = [
    "METHODS",
    "MIN_PADDED_POINTS",
    "ClassEvidence",
    "Classwise",
    "Embedded",
    "Evidence",
    "Likelihood",
    "PackedLayout",
    "Peers",
    "Rkme",
    "Score",
    "Scores",
    "Transfer",
    "UserArrays",
    "as_score",
    "best_agreement",
    "best_scores",
    "compare_classes",
    "compared_rows",
    "embed",
    "embedding_products",
    "evaluate",
    "find_peers",
    "gather",
    "needs_labels",
    "needs_peers",
    "needs_proxies",
    "pack",
    "pack_columns",
    "pack_scores",
    "score_all",
    "score_arrays",
    "score_rows",
    "start_best_scores",
    "summarise_classes",
    "unpack",
    "unpack_scores",
]
