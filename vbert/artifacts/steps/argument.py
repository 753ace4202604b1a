"""Arguments of the step that makes an artifact, as attributes that its class declares and reads."""

from __future__ import annotations

from typing import Any, Generic, Protocol, Self, TypeVar, overload

T = TypeVar("T")


class Made(Protocol):
    """An artifact, as far as it is needed here."""

    def input(self, name: str) -> Any: ...


class Argument(Generic[T]):
    """`raws: Argument[Mapping[str, RawFiles]] = Argument(through=True)`: the argument `raws` of the artifact's step,
    with the artifacts in it bound to the same store. An instance's own attribute of that name stands before it.

    through: the class reads its files, so that whoever is given the artifact needs what stands here too. default: the
    value where a stage that makes the class has no such parameter; without one, every stage must have it.
    """

    def __init__(self, *, through: bool = False, default: Any = ...) -> None:
        self.through, self.default = through, default

    @property
    def needed(self) -> bool:
        return self.default is ...

    def __set_name__(self, owner: Any, name: str) -> None:
        self.name = name
        if self.through:
            owner.through = (*owner.through, name)

    @overload
    def __get__(self, made: None, owner: type) -> Self: ...
    @overload
    def __get__(self, made: Made, owner: type) -> T: ...
    def __get__(self, made: Made | None, owner: type) -> Self | T:
        if made is None:
            return self
        try:
            return made.input(self.name)  # type: ignore[no-any-return]
        except AttributeError:
            if self.needed:
                raise
            return self.default  # type: ignore[no-any-return]
