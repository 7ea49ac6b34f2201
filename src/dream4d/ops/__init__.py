"""Operations whose speed decides the speed of training. Each folder has one public function, `reference` (a readable
torch twin: any device and dtype, the oracle of the tests) and `cpu` (Numba, float32)."""
