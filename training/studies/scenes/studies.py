"""The studies on scenes, by name."""

from ..study import Study
from .curation import curation
from .experiment import SCENES
from .place import place
from .referring import referring
from .siglip2 import siglip2


STUDIES = {
    study.name: study
    for study in (
        Study("place", "initial values with which tokens keep their place", place, SCENES),
        Study("referring", "what it takes to find a phrase among others", referring, SCENES),
        Study("siglip2", "SigLIP 2's objectives, together and apart", siglip2, SCENES),
        Study("curation", "a choice of examples where some captions are wrong", curation, SCENES),
    )
}
