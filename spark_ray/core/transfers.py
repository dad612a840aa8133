"""Many files at once, where storage is far away."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from spark_ray.core.storage import is_remote

_AT_ONCE = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def transfers(
    location: str, transfer: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """What `transfer` returns for each item, in order.

    Remote storage takes its time to answer, but answers many at once: there, 16 threads work ahead,
    and no more than 16 results are held. On a local disk it is done here, one after the other.
    """
    if not is_remote(location):
        yield from map(transfer, items)
        return
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for item in items:
            ahead.append(pool.submit(transfer, item))
            if len(ahead) == _AT_ONCE:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
