"""The engine that a configuration asks for."""

from reasonrec import ranks
from reasonrec.errors import ConfigError
from reasonrec.training.config import EngineConfig
from reasonrec.training.rl.engines.continuation import ContinuationEngine
from reasonrec.training.rl.engines.contract import RolloutEngine
from reasonrec.training.rl.engines.sampler import Sampler
from reasonrec.training.rl.engines.vllm import VllmColocated, VllmServer


def build_engine(config: EngineConfig) -> RolloutEngine:
    """Return the engine of a configuration, not yet synced.

    Raises:
        ConfigError: vLLM inside each of several processes.
    """
    if config.kind == "sampler":
        return Sampler()
    if config.kind == "vllm-server":
        completer = VllmServer(
            config.url, concurrency=config.concurrency, timeout_s=config.timeout_s
        )
    else:
        if ranks.num_ranks() > 1:
            raise ConfigError(
                "engine.kind = 'vllm-colocated' is for one process; several share a server: "
                "use 'vllm-server'"
            )
        completer = VllmColocated(
            memory_frac=config.memory_frac, max_length=config.max_length, is_eager=config.eager
        )
    return ContinuationEngine(completer, handover=config.handover, folder=config.folder)
