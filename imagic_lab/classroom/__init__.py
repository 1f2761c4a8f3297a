"""Tools for teaching: maps, figures and films, predictions, and checks of exercises."""

from imagic_lab.classroom.course import score
from imagic_lab.classroom.ladder import check
from imagic_lab.classroom.maps import latents_stack, the_map, unet_map
from imagic_lab.classroom.plots import film, show, slide
from imagic_lab.classroom.predictions import predict, reveal

__all__ = ["check", "film", "latents_stack", "predict", "reveal", "score", "show", "slide", "the_map", "unet_map"]
