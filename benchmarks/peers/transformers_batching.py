"""transformers' continuous batching: what `generate_batch` runs, with a limit for each item."""

from __future__ import annotations

from transformers import ContinuousBatchingConfig
from workloads import Workload

from peers import Answer, Setup
from peers.transformers_peer import generation, load

BLOCK = 32  # cache positions of one block; other sizes have not been tried


class Continuous:
    """A manager as `generate_batch` makes it, on as many requests at a time as ours has slots."""

    def __init__(self, setup: Setup, workload: Workload):
        self.model, self.workload = load(setup), workload

    def warm(self) -> None:
        """Nothing: the first, greedy run warms what there is to warm."""

    def run(self, greedy: bool, seed: int) -> Answer:
        """Answers the workload."""
        items, slots = self.workload.items, self.workload.slots
        longest = max(len(item.tokens) + item.limit for item in items)
        settings = ContinuousBatchingConfig(
            block_size=BLOCK,
            num_blocks=slots * (longest // BLOCK + 2),  # else it takes most of the memory
            max_batch_tokens=512,
            max_requests_per_batch=slots,
            seed=seed,
        )
        config = generation(max(item.limit for item in items), greedy)
        config.eos_token_id = -1
        written: dict[str, list[int]] = {}
        with self.model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=settings, block=True, timeout=5
        ) as manager:
            for n, item in enumerate(items):
                manager.add_request(list(item.tokens), request_id=str(n), max_new_tokens=item.limit)
            while len(written) < len(items):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    written[result.request_id] = list(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise RuntimeError("continuous batching ended before all requests were done")
        return Answer(tokens=[written[str(n)] for n in range(len(items))])
