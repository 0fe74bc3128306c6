"""Evidence: the statistics that recipes read, of the pool's models on search examples, collected before any work."""

from evomerge.evidence.collectors import Price
from evomerge.evidence.evidence import Evidence

__all__ = ["Evidence", "Price"]
