"""The live page: Imagic, training included, in a browser tab. The page's own sources are in docs/live/."""
