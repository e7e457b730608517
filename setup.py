"""The one thing that pyproject.toml cannot say: which folders outside the package travel in the wheel, and where to."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
DATA_FOLDERS = ("search_spaces", "hardware_profiles")


class BuildWithData(build_py):
    """Copies ``<root>/<folder>/**/*.yaml`` to ``autoq/_data/<folder>/`` of a wheel.

    An editable install copies nothing: there the package reads the folders at the root, so that an edit counts at once.
    """

    def run(self) -> None:
        """Build the package, then add the data folders."""
        super().run()
        if not self.editable_mode:
            for source, target in self._data_files_to_copy():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target), preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Every file of the wheel, the data folders' included."""
        data = [] if self.editable_mode else [str(target) for _, target in self._data_files_to_copy()]
        return [*super().get_outputs(include_bytecode), *data]

    def _data_files_to_copy(self) -> list[tuple[Path, Path]]:
        target_root = Path(self.build_lib) / "autoq" / "_data"
        return [
            (source, target_root / source.relative_to(ROOT))
            for folder in DATA_FOLDERS
            for source in sorted((ROOT / folder).rglob("*.yaml"))
        ]


setup(cmdclass={"build_py": BuildWithData})
