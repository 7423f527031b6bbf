"""Device code: update rules, storage codecs, and the drivers that launch them. Imports Triton and nothing of ours."""
