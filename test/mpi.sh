# For the tests that start several processes; sourced after test/check.sh.
#
#   mpirun        the launcher, quiet: without it, Open MPI adds a paragraph of its own to what a program says
#   mpirun_loud   the same with its messages, which say which rank was killed
# shellcheck shell=bash disable=SC2034

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mpirun_loud=(mpirun --oversubscribe --bind-to none)
mpirun=(mpirun -q --oversubscribe --bind-to none)

# have_mpi PROGRAM: whether there is a launcher, and a program that it can start; says so, once, where there is not
have_mpi() {
    if command -v mpirun >/dev/null && grep -q libmpi < <(ldd "$1"); then return 0; fi
    [ -n "${said_no_mpi:-}" ] ||
        echo "not tested here: several processes (no mpirun, or a build without MPI; scripts/deps.sh mpi)"
    said_no_mpi=yes
    return 1
}
