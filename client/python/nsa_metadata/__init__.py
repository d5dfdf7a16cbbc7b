"""The client of the NSA metadata service: sequence lengths in, one entry per token out.

    from nsa_metadata import Client

    with Client("127.0.0.1:50051") as client:
        expansion = client.expand([3, 2], [10, 4], nsa_index_topk=2048, mode="causal")
    expansion.seqlens_expanded  # [8, 9, 10, 3, 4], numpy int32

AsyncClient is the same for asyncio; nsa_metadata.presets has the arguments of engines' steps.

Words: sequence b of num_sequences extends by extend_seq_lens[b] tokens and is seq_lens[b] tokens long; total_tokens is
the sum of extend_seq_lens. nsa/metadata/v1/metadata.proto says what is refused.
"""

from nsa_metadata.aio import AsyncClient, AsyncExpandStream
from nsa_metadata.client import Client
from nsa_metadata.enums import OUTPUTS, Mode, Output
from nsa_metadata.errors import DeadlineExceeded, Error, Refused, Unreachable
from nsa_metadata.expansion import Expansion, Timing
from nsa_metadata.stream import ExpandStream
from nsa_metadata.tls import tls_credentials

__all__ = [
    "OUTPUTS",
    "AsyncClient",
    "AsyncExpandStream",
    "Client",
    "DeadlineExceeded",
    "Error",
    "ExpandStream",
    "Expansion",
    "Mode",
    "Output",
    "Refused",
    "Timing",
    "Unreachable",
    "tls_credentials",
]
