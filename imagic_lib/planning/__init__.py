"""Before a training: will it fit, and how long will it take?"""
