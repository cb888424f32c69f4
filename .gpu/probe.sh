set -x
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name --format=csv
time python3 bench.py config/shakespeare_char.py --steps=50 --blocks=8 --warmup=20 -- config/expansive_shakespeare.py -- config/expansive_shakespeare.py --expansion=10000 -- config/expansive_shakespeare.py --linear_path=factored
time python3 .gpu/prof.py
