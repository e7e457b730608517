"""Hardware profiles as what runs them must have them: read, and held against the runtimes and gauges that there are."""

from __future__ import annotations

from pathlib import Path

from autoq.errors import ProfileError
from autoq.runtime.base import RUNTIMES
from autoq.runtime.extras import missing_extra
from autoq.runtime.gauge import METER, load_gauge
from autoq.spec.checking import nearest
from autoq.spec.hardware import Profile, load_profile
from autoq.spec.resources import find_named


def read_profile(name: str | Path, base_dir: str | Path) -> Profile:
    """As :func:`autoq.spec.hardware.load_profile`, checked before anything else is read.

    Raises :class:`~autoq.errors.ProfileError` as well, for a runtime or gauge that there is not, and for options that
    the gauge does not take. What is only not installed here is no error: the profile can still be looked at.
    """
    profile = load_profile(name, base_dir)
    path = find_named("hardware_profiles", name, Path(base_dir))
    try:
        _check(profile)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from None
    return profile


def _check(profile: Profile) -> None:
    runtime, by = profile.runtime, profile.measure.by
    if runtime.name not in RUNTIMES:
        raise ProfileError(
            f"runtime.name: unknown runtime {runtime.name!r}{nearest(runtime.name, RUNTIMES)}; known: "
            f"{', '.join(RUNTIMES)}"
        )
    if missing_extra(by) or (by == METER and not profile.measure.options):
        return
    # Gauges open what they measure when they are asked to: made without a file, each judges its options.
    load_gauge(
        by,
        Path(f"reference of {profile.name}"),
        {},
        threads=profile.latency.threads,
        runtime=runtime.name,
        runtime_options=runtime.arguments,
        reference_name=str(profile.reference),
        options=profile.measure.options,
    ).close()
