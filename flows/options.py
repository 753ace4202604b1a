"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

Set = Annotated[list[str], Parameter(name="--set", negative=(), help="change a field: pretrain.steps=600")]
MachineOption = Annotated[list[str], Parameter(name="--machine", negative=(), help="units_at_once=4 and the like")]
StoreOption = Annotated[str | None, Parameter(name="--store", help="the store; else $VBERT_STORE, else ./store")]
SharedOption = Annotated[
    bool, Parameter(name="--shared", negative=(), help="let the group of the store's directory build in it too")
]
JsonOption = Annotated[bool, Parameter(name="--json", negative=(), help="one JSON object as the last line of output")]
DtypeOption = Annotated[
    Literal["float16", "float32", "float64"] | None,
    Parameter(help="of the features, in tables that don't say it; float32 otherwise"),
]
