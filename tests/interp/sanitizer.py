"""An address and race sanitizer for interpreted Triton kernels, with a program order of choice.

Inside ``Sanitizer(...)`` every address that a load, store or atomic does not mask must lie inside an
argument of the launch, and no two programs may touch an element if one of them writes it.
"""

import numpy as np
from triton.runtime import interpreter

Builder, Executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
HOOKED = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "set_grid_idx", "set_grid_dim")
NOBODY = -1


class KernelMemoryError(AssertionError):
    """A kernel touched memory that is not its own."""


class Sanitizer:
    """Checks every launch inside its ``with`` block.

    Args:
        order: None runs programs in their order; a seed shuffles them.
        races: also record who touched which element, which costs 9 bytes per byte of the arguments.
    """

    def __init__(self, *, order=None, races=True):
        self.order, self.races = order, races
        self.launches = self.loads = self.stores = 0

    def __enter__(self):
        self._stock = {name: getattr(Builder, name) for name in HOOKED}
        self._stock_arguments = Executor._init_args_hst
        checker = self

        def arguments(executor, values, named):
            placed, placed_named = checker._stock_arguments(executor, values, named)
            checker._begin(executor, [*zip(executor.arg_names, placed, strict=False), *placed_named.items()])
            return placed, placed_named

        def load(builder, pointers, mask, *rest, **named):
            checker.loads += 1
            checker._touch(pointers, mask, "load")
            return checker._stock["create_masked_load"](builder, pointers, mask, *rest, **named)

        def store(builder, pointers, value, mask, *rest):
            checker.stores += 1
            checker._touch(pointers, mask, "store")
            return checker._stock["create_masked_store"](builder, pointers, value, mask, *rest)

        def atomic(builder, operation, pointers, value, mask, *rest):
            checker._touch(pointers, mask, "atomic")
            return checker._stock["create_atomic_rmw"](builder, operation, pointers, value, mask, *rest)

        def dimensions(builder, x, y, z):
            checker._stock["set_grid_dim"](builder, x, y, z)
            generator = np.random.default_rng(checker.order)
            count = x * y * z
            checker._queue = iter(range(count) if checker.order is None else generator.permutation(count))

        def program(builder, _x, _y, _z):
            _, size_y, size_z = builder.grid_dim
            checker._program = int(next(checker._queue))
            x, rest = divmod(checker._program, size_y * size_z)
            checker._stock["set_grid_idx"](builder, x, *divmod(rest, size_z))

        Executor._init_args_hst = arguments
        for name, hook in zip(HOOKED, (load, store, atomic, program, dimensions), strict=True):
            setattr(Builder, name, hook)
        return self

    def __exit__(self, *_):
        Executor._init_args_hst = self._stock_arguments
        for name, method in self._stock.items():
            setattr(Builder, name, method)

    def _begin(self, executor, arguments):
        self.launches += 1
        self._kernel = executor.fn.__name__
        spans = {}
        for name, value in arguments:
            tensor = value if hasattr(value, "data_ptr") else getattr(value, "base", None)
            if tensor is None or not tensor.numel():
                continue
            extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
            start, end = tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size()
            spans.setdefault((start, end), name)
        ordered = sorted(spans)
        self._names = [spans[span] for span in ordered]
        self._starts = np.array([start for start, _ in ordered], np.uint64)
        self._ends = np.array([end for _, end in ordered], np.uint64)
        sizes = (self._ends - self._starts).astype(np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        tracked = int(self._offsets[-1]) if self.races else 0
        self._writer, self._reader = (np.full(tracked, NOBODY, np.int32) for _ in range(2))
        self._atomic = np.zeros(tracked, bool)

    def _touch(self, pointers, mask, kind):
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses, live = np.broadcast_arrays(pointers.data, mask.data)
        touched = addresses[live].ravel()
        if not touched.size:
            return
        places = self._places(touched, size, kind)
        if self.races:
            self._record(places, kind)

    def _places(self, addresses, size, kind):
        """Number the elements through all arguments; raise if one is outside of all of them."""
        argument = np.searchsorted(self._starts, addresses, side="right").astype(np.int64) - 1
        outside = (argument < 0) | (addresses + np.uint64(size) > self._ends[np.maximum(argument, 0)])
        if outside.any():
            first = int(np.argmax(outside))
            nearest = max(int(argument[first]), 0)
            past = int(addresses[first]) - int(self._ends[nearest])
            raise KernelMemoryError(
                f"{self._kernel}, program {self._program}: {int(outside.sum())} of {addresses.size} "
                f"addresses of a {kind} are out of bounds, the first {past} bytes past the end of "
                f"{self._names[nearest]!r}"
            )
        return self._offsets[argument] + (addresses - self._starts[argument]).astype(np.int64)

    def _record(self, places, kind):
        def refuse(others, what):
            mixed = (others != NOBODY) & (others != self._program)
            if kind == "atomic":
                mixed &= ~self._atomic[places]
            if mixed.any():
                raise KernelMemoryError(
                    f"{self._kernel}: race: {kind} by program {self._program} of an element {what} "
                    f"by program {int(others[np.argmax(mixed)])}"
                )

        refuse(self._writer[places], "stored")
        if kind == "load":
            self._reader[places] = self._program
            return
        refuse(self._reader[places], "loaded")
        if kind == "store" and np.unique(places).size != places.size:
            raise KernelMemoryError(f"{self._kernel}: one store writes an element twice")
        self._writer[places] = self._program
        self._atomic[places] = kind == "atomic"
