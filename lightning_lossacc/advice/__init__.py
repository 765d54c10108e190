"""What to do, one sentence a remedy, with the numbers of the run in it; one file a heading of causes.

Every function takes `Measured` and returns its sentence, or None where the remedy cannot help or is in use already.
`lightning_lossacc.remedies` says which of them a cause gets.
"""
