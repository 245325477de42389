"""The next batch of rollouts, written in a thread while this one is learned from."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from reasonrec.training.rl.engines.contract import Thoughts


class WritesAhead:
    """Knows which batch comes next, and waits for it; not across a checkpoint, of which a resumed
    run has the weights and no thoughts."""

    def __init__(
        self, sample: TorchDataset, *, batch_size: int, num_inner_epochs: int, fresh_every: int
    ) -> None:
        """Args:
        sample: Rows of all steps in order, those of a batch once for each inner epoch.
        batch_size: Rows of a batch over all processes.
        fresh_every: Batches from one checkpoint to the next.
        """
        self.stride = batch_size * num_inner_epochs
        """From a row of one batch to that of the next."""
        self._sample, self._fresh_every = sample, fresh_every
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._written: tuple[int, Future[Thoughts]] | None = None

    def rows_after(self, number: int, keys: Tensor) -> dict[str, Tensor] | None:
        """Return the rows of this process in the batch after ``number``; None if there is none, or
        a checkpoint lies between.

        Args:
            keys: Rows of this process in batch ``number``, in its first inner epoch.
        """
        rows = (keys + self.stride).tolist()
        if rows[-1] >= len(self._sample) or (number + 1) % self._fresh_every == 0:  # pyright: ignore[reportArgumentType]
            return None
        return self._sample.__getitems__(rows)  # pyright: ignore[reportAttributeAccessIssue]

    def start(self, number: int, write: Callable[[], Thoughts]) -> None:
        """Have a batch written from now on."""
        self._written = number, self._pool.submit(write)

    def take(self, number: int) -> Thoughts | None:
        """Return that batch once it is written; None if nobody writes it."""
        written, self._written = self._written, None
        return written[1].result() if written and written[0] == number else None
