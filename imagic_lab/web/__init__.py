"""The live page: Imagic in a browser tab, including the training. The sources of the page are in docs/live/."""
