"""Stage `overlaps`: whether photos of evaluation splits are trained on."""

from __future__ import annotations

from collections.abc import Mapping

from vbert.artifacts.steps.stage import Build, Figures, stage
from vbert.data.overlaps import Overlaps, PhotosOfSplits
from vbert.errors import BuildError


@stage("overlaps", makes=Overlaps, version=1, through=False)
def overlaps(
    build: Build,
    trained: Mapping[str, PhotosOfSplits],
    evaluated: Mapping[str, PhotosOfSplits],
    known: Mapping[str, str],
    elsewhere: Mapping[str, str],
) -> Figures:
    """Compares photos by their sha256, so under other names and in other data sets too; val is an evaluation split.

    known: data set → why its photos may be on both sides; without such a reason an overlap ends the run.
    elsewhere: what was trained on photos that the recipe doesn't have → their data set; told, not compared.
    """
    from vbert.data.overlaps import overlaps_of, write_overlaps

    found, photos, evaluated_on = overlaps_of(trained, evaluated)
    if unknown := [one for one in found if one.evaluated not in known and one.trained not in known]:
        raise BuildError(
            f"{unknown[0]}{f' (and {len(unknown) - 1:,} more overlaps)' if len(unknown) > 1 else ''}; take them out of "
            f"one, or if it must be so say why: `--set 'data.{unknown[0].evaluated}.known_overlap=REASON'` (in a spec: "
            f"`known_overlap: REASON`)"
        )
    write_overlaps(build.directory, found)
    notes = [f"{one}; known: {known.get(one.evaluated) or known[one.trained]}" for one in found]
    notes += [f"{what} was trained on {data}, whose photos aren't compared" for what, data in elsewhere.items()]
    figures: Figures = {"trained": photos, "evaluated": evaluated_on, "overlaps": sum(one.count for one in found)}
    return figures | ({"notes": notes} if notes else {})
