# shakespeare_char.py with Muon for the matrices of the blocks and AdamW for the rest (docs/optimizers.md).
#
#   python train.py config/shakespeare_muon.py
#   python train.py config/shakespeare_muon.py --linear=btt --out_dir=out/shakespeare-muon-btt      any layer
#
# A step takes 1.16 times as long as under AdamW on an H200 (docs/optimizers.md). In 250 iterations Muon lowers the loss of the
# dense model more than any structure does under AdamW (RESULTS.md). The learning rate for 5,000 iterations is not tuned.

include('shakespeare_char.py')

out_dir = out_dir.replace('shakespeare-char', 'shakespeare-muon')
wandb_run_name = 'muon'

optimizer = 'muon'
matrix_lr = 1e-2  # in AdamW's measure (muon_scale = 'rms')
