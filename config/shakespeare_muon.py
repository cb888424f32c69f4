# shakespeare_char.py with Muon for the matrices of the blocks and AdamW for the rest (docs/optimizers.md).
#
#   python train.py config/shakespeare_muon.py
#   python train.py config/shakespeare_muon.py --linear=btt --out_dir=out/shakespeare-muon-btt      any layer
#
# What to expect: nothing is measured on a GPU yet.

include('shakespeare_char.py')

out_dir = out_dir.replace('shakespeare-char', 'shakespeare-muon')
wandb_run_name = 'muon'

optimizer = 'muon'
matrix_lr = 1e-2  # in AdamW's measure (muon_scale = 'rms')
