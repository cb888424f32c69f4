# How much does the last loss vary between random seeds? The dense model in each setting that comparisons use, eight
# seeds, one rate. An arm here is a setting; arms are not compared with each other.
#
#   python compare.py config/compare/sigma.py --cluster=pool --jobs=8
#   python -m lab.sigma results/sigma           standard deviations, of both halves of the validation windows too

claim = '{arm} and {baseline} are two settings; there is no claim about them'
common = '--save_checkpoint=false'
arms = dict(
    gutenberg_128='config/structured/gutenberg_bpe.py',
    shakespeare_250='config/shakespeare_char.py --max_iters=250',
)
mismatch = dict(shakespeare_250='another setting, not compared')
seeds = 8
looks = False  # nothing is judged
match = 'tokens'
bench = False
