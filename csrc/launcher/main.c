/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - the `pyvmm` program: libpython in it, running `-m pyvmm`
 *
 * One process and one start instead of a shell wrapper that looks for an
 * interpreter. It knows no virtual machine: all it decides is which Python
 * environment is meant, in this order:
 *
 *   1. the virtual environment whose bin directory it lies in (or, through
 *      symbolic links, really lies in);
 *   2. $VIRTUAL_ENV;
 *   3. the .venv of the checkout in whose build directory it lies;
 *   4. the interpreter that it was built with.
 *
 * It gives CPython the path of that environment's python3 as the program's
 * name, and the search for pyvenv.cfg and site-packages is CPython's own.
 * Environments of another version than the libpython in here are passed over.
 */
#include <limits.h>
#include <Python.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

/* Joins `dir` and `name`; false when it does not fit or nothing is there. */
static bool
join(char out[PATH_MAX], const char *dir, const char *name)
{
    int len = snprintf(out, PATH_MAX, "%s/%s", dir, name);

    return len > 0 && len < PATH_MAX && access(out, F_OK) == 0;
}

/* Cuts the last component off; false when there is none. */
static bool
parent(char *path)
{
    char *slash = strrchr(path, '/');

    if (!slash)
        return false;
    slash[slash == path] = '\0';
    return true;
}

/* The python3 of the environment at `root`, if that is one of our version. */
static bool
in_environment(char out[PATH_MAX], const char *root)
{
    return root[0] == '/' && join(out, root, "pyvenv.cfg") &&
           join(out, root, "lib/" PYVMM_PYTHON_DIR) &&
           join(out, root, "bin/python3");
}

/* Whose bin directory is it that the program at `path` lies in? */
static bool
beside(char out[PATH_MAX], const char *path)
{
    char root[PATH_MAX];

    strcpy(root, path);
    return parent(root) && parent(root) && in_environment(out, root);
}

/* The path that the program was started by, links left alone. */
static bool
started_as(char out[PATH_MAX], const char *argv0)
{
    char list[32768], cwd[PATH_MAX], *dir, *rest = list;
    const char *path = getenv("PATH");

    if (strchr(argv0, '/')) {
        if (argv0[0] == '/')
            return join(out, "", argv0 + 1);
        return getcwd(cwd, sizeof(cwd)) && join(out, cwd, argv0);
    }
    if (!path || strlen(path) >= sizeof(list))
        return false;
    strcpy(list, path);
    while ((dir = strsep(&rest, ":"))) {
        if (dir[0] == '/' && join(out, dir, argv0) && access(out, X_OK) == 0)
            return true;
    }
    return false;
}

static const char *
find_python(char out[PATH_MAX], const char *argv0)
{
    const char *active = getenv("VIRTUAL_ENV");
    char path[PATH_MAX], real[PATH_MAX];
    ssize_t len;

    if (started_as(path, argv0) && beside(out, path))
        return out;
    len = readlink("/proc/self/exe", real, sizeof(real) - 1);
    real[len < 0 ? 0 : len] = '\0';
    if (beside(out, real))
        return out;
    if (active && in_environment(out, active))
        return out;
    if (parent(real) && parent(real) && join(path, real, ".venv") &&
        in_environment(out, path))
        return out;
    return PYVMM_PYTHON;
}

int
main(int argc, char **argv)
{
    char python[PATH_MAX];
    PyStatus status;
    PyConfig config;

    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    status = PyConfig_SetBytesString(
        &config, &config.program_name,
        find_python(python, argc > 0 ? argv[0] : "pyvmm"));
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesArgv(&config, argc, argv);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetString(&config, &config.run_module, L"pyvmm");
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    return Py_RunMain();
}
