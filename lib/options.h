/* Command-line options. One table describes them for parsing, --help, the config file and the record in a checkpoint.
 *
 *     static int64_t steps = 1000;
 *     static const Option table[] = {{"steps", 's', OPT_INT, &steps, "N", "optimizer steps", 1, 1e9}};
 *     options_parse(table, 1, argc, argv, "[options]", NULL);
 *
 * The syntax is GNU's: --name value, --name=value, --flag, --no-flag, -s value, -svalue; `--` ends the options.
 * --help, --version and --config FILE are built in. A usage error ends the program with status 2. An entry whose name is NULL is
 * a heading in --help, with the text `help`. */
#ifndef LIB_OPTIONS_H
#define LIB_OPTIONS_H

#include "file.h"
#include "shipped.h"

#include <math.h>

/* OPT_RETIRED is an option of older versions: ignored in config files, and an error on the command line, where `help`
 * says what replaced it. */
typedef enum { OPT_FLAG, OPT_INT, OPT_FLOAT, OPT_STRING, OPT_LIST, OPT_RETIRED } OptionType;

typedef struct {
    const char **items;
    int count;
} StringList;

typedef struct {
    const char *name;  // without the dashes
    char short_name;   // 0: none
    OptionType type;
    void *value;           // a bool, int64_t, double, const char * or StringList; initially the default
    const char *argument;  // name of the value in --help: "FILE", "N"
    const char *help;
    double min, max;  // inclusive bounds of a number; both 0: none
} Option;

/* State of the parser. The strings stay allocated to the end of the program, because option values point to them. */
static struct {
    char **strings;
    int string_count;
    const Option *given[256];  // the options that the user has set, the last one last
    int given_count;
} options_state;

/* Whether the user has set an option, on the command line or in a config file. The option is named by its table entry
 * or by the pointer to its value. */
static inline bool options_given(const void *entry_or_value) {
    for (int i = 0; i < options_state.given_count; i++)
        if (options_state.given[i] == entry_or_value || options_state.given[i]->value == entry_or_value) return true;
    return false;
}

/* Whether the user has set the option of this value, and not the other one after it. The command line comes after a config
 * file. */
static inline bool options_given_after(const void *value, const void *other) {
    bool after = false;
    for (int i = 0; i < options_state.given_count; i++) {
        if (options_state.given[i]->value == value) after = true;
        if (options_state.given[i]->value == other) after = false;
    }
    return after;
}

/* Makes options_given false for all: a program that reads its options a second time begins anew. */
static inline void options_forget_given(void) { options_state.given_count = 0; }

/* Keeps an allocated string until the end of the program. */
static inline const char *options_keep(char *s) {
    options_state.strings = xrealloc(options_state.strings, (options_state.string_count + 1) * sizeof(char *));
    options_state.strings[options_state.string_count++] = s;
    return s;
}

static inline void string_list_add(StringList *list, const char *item) {
    list->items = xrealloc(list->items, (list->count + 1) * sizeof *list->items);
    list->items[list->count++] = item;
}

/* Reports a usage error and ends the program with status 2. */
__attribute__((format(printf, 1, 2), noreturn)) static inline void options_die(const char *format, ...) {
    va_list args;
    fflush(stdout);
    fprintf(stderr, "%s: error: ", program_name_text);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, " (try --help)\n");
    exit(2);
}

/* ---- values ---- */

/* The bounds of a number, as the end of an error sentence. */
static inline const char *options_range(const Option *o, char *out, size_t size) {
    bool below = o->min > -1e300, above = o->max < 1e300;
    if (below && above)
        snprintf(out, size, "from %.10g to %.10g", o->min, o->max);
    else if (below)
        snprintf(out, size, "of %.10g or more", o->min);
    else
        snprintf(out, size, "of %.10g or less", o->max);
    return out;
}

/* Parses a number. `what` names the option in error messages: "--steps", or "FILE, line 3: steps". */
static inline int options_number(const Option *o, const char *text, const char *what, Error *err) {
    char *end, range[80];
    errno = 0;
    double x;
    long long whole = 0;
    if (o->type == OPT_INT) {
        whole = strtoll(text, &end, 10);
        x = (double)whole;
    } else {
        x = strtod(text, &end);
    }
    bool overflow = errno == ERANGE && (o->type == OPT_INT || fabs(x) > 1);
    if (end == text || *end != '\0' || !isfinite(x))
        return error_set(err, "%s needs %s, not '%s'", what, o->type == OPT_INT ? "a whole number" : "a number",
                         text);
    if (overflow) return error_set(err, "%s: %s is too large", what, text);
    if ((o->min != 0 || o->max != 0) && (x < o->min || x > o->max))
        return error_set(err, "%s must be a number %s, not %s", what, options_range(o, range, sizeof range), text);
    if (o->type == OPT_INT)
        *(int64_t *)o->value = whole;
    else
        *(double *)o->value = x;
    return 0;
}

static inline int options_boolean(bool *value, const char *text, const char *what, Error *err) {
    static const char *const yes[] = {"true", "yes", "on", "1"}, *const no[] = {"false", "no", "off", "0"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, yes[i]) && strcmp(text, no[i])) continue;
        *value = !strcmp(text, yes[i]);
        return 0;
    }
    return error_set(err, "%s needs true or false, not '%s'", what, text);
}

/* Makes an option the last of those that are given. */
static inline int options_note_given(const Option *o, Error *err) {
    const Option **given = options_state.given;
    int i = 0, n = options_state.given_count;
    while (i < n && given[i] != o) i++;
    if (i == 256) return error_set(err, "more than 256 different options");
    if (i == n) options_state.given_count = ++n;
    memmove(given + i, given + i + 1, (size_t)(n - 1 - i) * sizeof *given);
    given[n - 1] = o;
    return 0;
}

/* Sets the value of an option. `fresh` says that this is the first time in this source (command line or config file);
 * then a list is replaced, otherwise it grows. */
static inline int options_set(const Option *o, const char *text, const char *what, bool fresh, Error *err) {
    int status = 0;
    if (o->type == OPT_FLAG)
        status = options_boolean(o->value, text, what, err);
    else if (o->type == OPT_INT || o->type == OPT_FLOAT)
        status = options_number(o, text, what, err);
    else if (o->type == OPT_STRING)
        *(const char **)o->value = options_keep(xstrdup(text));
    if (o->type == OPT_LIST) {
        StringList *list = o->value;
        if (fresh) {  // drops the default, which may be a constant, or the list of the config file, which is
                      // allocated
            if (options_given(o)) options_keep((void *)list->items);
            list->items = NULL;
            list->count = 0;
        }
        string_list_add(list, options_keep(xstrdup(text)));
    }
    return status == 0 ? options_note_given(o, err) : status;
}

/* ---- lookup ---- */

static inline const Option *options_find(const Option *table, int n, const char *name, size_t length) {
    for (int i = 0; i < n; i++)
        if (table[i].name && strlen(table[i].name) == length && !strncmp(table[i].name, name, length))
            return &table[i];
    return NULL;
}

static inline const Option *options_find_short(const Option *table, int n, char c) {
    for (int i = 0; i < n; i++)
        if (table[i].name && c && table[i].short_name == c) return &table[i];
    return NULL;
}

/* The Levenshtein distance of two names, which are truncated to 63 characters. */
static inline int options_distance(const char *a, size_t na, const char *b, size_t nb) {
    int row[64];
    if (na > 63) na = 63;
    if (nb > 63) nb = 63;
    for (size_t j = 0; j <= nb; j++) row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[nb];
}

/* "; did you mean --NAME?" if the table has a name close enough, else "". */
static inline const char *options_suggestion(const Option *table, int n, const char *name, size_t length, char *out,
                                             size_t size) {
    const char *nearest = NULL;
    int best = length < 4 ? 1 : length < 8 ? 2 : 3;
    for (int i = 0; i < n; i++) {
        if (!table[i].name || table[i].type == OPT_RETIRED) continue;
        size_t full = strlen(table[i].name);
        int distance = options_distance(name, length, table[i].name, full);
        if (length >= 3 && length < full && !strncmp(name, table[i].name, length)) distance = 1;
        if (distance > best || (nearest && distance == best)) continue;
        nearest = table[i].name;
        best = distance;
    }
    snprintf(out, size, "%s%s%s", nearest ? "; did you mean --" : "", nearest ? nearest : "", nearest ? "?" : "");
    return out;
}

/* ---- config files ---- */

static inline char *options_trim(char *s) {
    while (*s == ' ' || *s == '\t' || *s == '\r') s++;
    size_t n = strlen(s);
    while (n && (s[n - 1] == ' ' || s[n - 1] == '\t' || s[n - 1] == '\r')) s[--n] = '\0';
    return s;
}

/* Extracts the value from the text after '=', in place: a double-quoted string with the escapes \" \\ \n, or the text
 * up to a comment. NULL if a quote is not closed or text follows it. */
static inline char *options_config_value(char *s) {
    s = options_trim(s);
    if (*s != '"') {
        for (char *p = s; *p; p++)
            if (*p == '#' && (p == s || p[-1] == ' ' || p[-1] == '\t')) {
                *p = '\0';
                break;
            }
        return options_trim(s);
    }
    char *out = ++s, *value = s;
    for (; *s && *s != '"'; s++) {
        if (*s == '\\' && s[1])
            *out++ = *++s == 'n' ? '\n' : *s;
        else
            *out++ = *s;
    }
    if (*s != '"') return NULL;
    char *rest = options_trim(s + 1);
    *out = '\0';
    return *rest == '\0' || *rest == '#' ? value : NULL;
}

/* Reads one line of a config file. seen[i]: whether this file has set option i already. */
static inline int options_config_line(const Option *table, int n, char *line, const char *where, bool *seen,
                                      Error *err) {
    char suggestion[100], *key = options_trim(line);
    if (!*key || *key == '#') return 0;
    char *equals = strchr(key, '=');
    if (!equals) return error_set(err, "%s: 'key = value' was expected, not '%.100s'", where, key);
    *equals = '\0';
    key = options_trim(key);
    char *value = options_config_value(equals + 1);
    if (!value) return error_set(err, "%s: the quoted value of %.100s does not end with its line", where, key);
    const Option *o = options_find(table, n, key, strlen(key));
    if (!o)
        return error_set(err, "%s: there is no option '%.100s'%s", where, key,
                         options_suggestion(table, n, key, strlen(key), suggestion, sizeof suggestion));
    if (o->type == OPT_RETIRED) return 0;
    char *what = format_string("%s: %s", where, key);
    int status = options_set(o, value, what, !seen[o - table], err);
    seen[o - table] = true;
    free(what);
    return status;
}

/* Reads a file of `key = value` lines. A byte order mark, with which some editors begin a file, is skipped. */
static inline int options_config(const Option *table, int n, const char *path, Error *err) {
    const char *problem;
    size_t size;
    int fd = file_open(path, &size, &problem);
    FILE *f = fd >= 0 ? fdopen(fd, "rb") : NULL;
    if (!f) return error_set(err, "cannot read the config file %s: %s", path, problem ? problem : strerror(errno));
    bool *seen = xcalloc(n, sizeof *seen);
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    int status = 0;
    errno = 0;
    for (int number = 1; status == 0 && (length = getline(&line, &capacity, f)) >= 0; number++) {
        char *where = format_string("%s, line %d", path, number);
        if (strlen(line) != (size_t)length) {
            status = error_set(err, "%s: there is a NUL character; a text file was expected", where);
        } else {
            if (length && line[length - 1] == '\n') line[length - 1] = '\0';
            int mark = number == 1 && !strncmp(line, "\xef\xbb\xbf", 3) ? 3 : 0;
            status = options_config_line(table, n, line + mark, where, seen, err);
        }
        free(where);
        errno = 0;
    }
    if (status == 0 && ferror(f))
        status = error_set(err, "cannot read the config file %s: %s", path, strerror(errno ? errno : EIO));
    free(line);
    free(seen);
    fclose(f);
    return status;
}

/* ---- writing a config file ---- */

/* Writes a string, in double quotes if it needs them. */
static inline void options_write_string(const char *s, FILE *f) {
    bool plain = *s && *s != '"' && *s != ' ' && *s != '\t' && s[strlen(s) - 1] != ' ' && !strpbrk(s, "#\n\r\t");
    if (plain) {
        fputs(s, f);
        return;
    }
    fputc('"', f);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') fputc('\\', f);
        if (*s == '\n')
            fputs("\\n", f);
        else
            fputc(*s, f);
    }
    fputc('"', f);
}

/* Formats a number as the shortest decimal that reads back as the same double. */
static inline const char *options_double(double x, char *out, size_t size) {
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(out, size, "%.*g", digits, x);
        if (strtod(out, NULL) == x) break;
    }
    return out;
}

/* A value to be written instead of the value of an option; NULL: the option is left out. */
typedef struct {
    const char *name, *value;
} OptionOverride;

static inline const OptionOverride *options_override(const OptionOverride *overrides, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(overrides[i].name, name)) return &overrides[i];
    return NULL;
}

static inline void options_write_list(const Option *o, FILE *f) {
    const StringList *list = o->value;
    for (int k = 0; k < list->count; k++) {
        fprintf(f, "%s = ", o->name);
        options_write_string(list->items[k], f);
        fputc('\n', f);
    }
    if (list->count == 0) fprintf(f, "# %s =\n", o->name);
}

/* Writes the values of all options, or their overrides, as a config file. A string that is NULL or a number that is
 * NAN counts as not set and becomes a comment. */
static inline void options_write(const Option *table, int n, FILE *f, const OptionOverride *overrides, int count) {
    char number[40];
    for (int i = 0; i < n; i++) {
        const Option *o = &table[i];
        if (!o->name || o->type == OPT_RETIRED) continue;
        const OptionOverride *override = options_override(overrides, count, o->name);
        if (override) {
            if (override->value) fprintf(f, "%s = %s\n", o->name, override->value);
            continue;
        }
        if (o->type == OPT_LIST) {
            options_write_list(o, f);
            continue;
        }
        const char *s = o->type == OPT_STRING ? *(const char **)o->value : "";
        if (o->type == OPT_FLOAT && isnan(*(double *)o->value)) s = NULL;
        fprintf(f, "%s%s =%s", s ? "" : "# ", o->name, s ? " " : "");
        if (o->type == OPT_FLAG) fputs(*(bool *)o->value ? "true" : "false", f);
        if (o->type == OPT_INT) fprintf(f, "%lld", (long long)*(int64_t *)o->value);
        if (o->type == OPT_FLOAT && s) fputs(options_double(*(double *)o->value, number, sizeof number), f);
        if (o->type == OPT_STRING && s) options_write_string(s, f);
        fputc('\n', f);
    }
}

/* ---- help ---- */

/* Prints a text from column `at` on, wrapped at column 100, with later lines indented by `indent`. */
static inline void options_wrap(const char *text, int at, int indent) {
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (at > indent && at + 1 + length > 100) {
            printf("\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            putchar(' ');
            at++;
        }
        printf("%.*s", length, text);
        at += length;
        text += length;
        while (*text == ' ') text++;
    }
    putchar('\n');
}

static inline void options_help_line(const char *left, const char *text) {
    const int column = 30;
    int at = printf("  %s", left);
    if (at > column - 2) {
        putchar('\n');
        at = 0;
    }
    printf("%*s", column - at, "");
    options_wrap(text, column, column);
}

static inline void options_help_entry(const Option *o, const char *left) {
    char value[300] = "", number[40];
    if (o->value && o->type == OPT_FLAG && *(bool *)o->value)
        snprintf(value, sizeof value, " (default: on; --no-%s turns it off)", o->name);
    if (o->value && o->type == OPT_INT &&
        (double)*(int64_t *)o->value >= o->min)  // less than allowed: there is no default
        snprintf(value, sizeof value, " (default: %lld)", (long long)*(int64_t *)o->value);
    if (o->value && o->type == OPT_FLOAT && !isnan(*(double *)o->value))
        snprintf(value, sizeof value, " (default: %s)", options_double(*(double *)o->value, number, sizeof number));
    if (o->value && o->type == OPT_STRING && *(const char **)o->value && **(const char **)o->value)
        snprintf(value, sizeof value, " (default: %.250s)", *(const char **)o->value);
    if (o->type == OPT_LIST) {
        const StringList *list = o->value;
        size_t at = snprintf(value, sizeof value, " (may be given again%s", list->count ? "; default:" : "");
        for (int i = 0; i < list->count && at < sizeof value; i++)
            at += snprintf(value + at, sizeof value - at, " %s", list->items[i]);
        if (at < sizeof value) snprintf(value + at, sizeof value - at, ")");
    }
    char *text = format_string("%s%s", o->help ? o->help : "", value);
    options_help_line(left, text);
    free(text);
}

static inline void options_help(const Option *table, int n, const char *usage_line) {
    printf("usage: %s %s\n", program_name_text, usage_line ? usage_line : "[options]");
    if (n == 0 || table[0].name) printf("\noptions:\n");
    for (int i = 0; i < n; i++) {
        const Option *o = &table[i];
        if (o->type == OPT_RETIRED) continue;
        if (!o->name) {
            printf("\n%s:\n", o->help);
            continue;
        }
        char left[160], letter[8] = "    ";
        if (o->short_name) snprintf(letter, sizeof letter, "-%c, ", o->short_name);
        const char *argument = o->type == OPT_FLAG ? NULL : o->argument ? o->argument : "VALUE";
        snprintf(left, sizeof left, "%s--%s%s%s", letter, o->name, argument ? " " : "", argument ? argument : "");
        options_help_entry(o, left);
    }
    printf("\n");
    options_help_line("    --config FILE", "read options from FILE, `key = value` lines; the command line wins");
    options_help_line("    --version", "print the version and exit");
    options_help_line("-h, --help", "print this and exit");
}

/* ---- the command line ---- */

typedef struct {
    const Option *table;
    int n, argc, at;
    char **argv;
    const char *usage_line;
    StringList *positional;
    bool apply;  // false in the first pass, which handles --help and --config; true in the second, which sets values
    bool *seen;  // [n] whether the command line has set option i already
} OptionsWalk;

static inline bool options_is_known(const OptionsWalk *w, const char *argument) {
    if (strncmp(argument, "--", 2) != 0) return false;
    const char *name = argument + 2;
    size_t length = strcspn(name, "=");
    return options_find(w->table, w->n, name, length) || !strcmp(name, "config") || !strcmp(name, "help") ||
           !strcmp(name, "version");
}

/* The value of the option at `at` if it is an argument of its own: consumes and returns the next argument. */
static inline const char *options_next(OptionsWalk *w, const char *what) {
    const char *value = w->at + 1 < w->argc ? w->argv[w->at + 1] : NULL;
    if (!value) options_die("%s needs a value", what);
    if (options_is_known(w, value))
        options_die("%s needs a value, but %s follows; write %s=%s if that is the value", what, value, what, value);
    w->at++;
    return value;
}

static inline void options_apply(OptionsWalk *w, const Option *o, const char *value, const char *what) {
    Error err;
    if (!w->apply) return;
    if (options_set(o, value, what, !w->seen[o - w->table], &err) != 0) options_die("%s", err.text);
    w->seen[o - w->table] = true;
}

/* Handles --name, --name=value and --no-name. */
static inline void options_long(OptionsWalk *w, const char *argument) {
    char what[80], suggestion[100];
    Error err;
    const char *name = argument + 2;
    size_t length = strcspn(name, "=");
    const char *value = name[length] == '=' ? name + length + 1 : NULL;
    snprintf(what, sizeof what, "--%.*s", length < 70 ? (int)length : 70, name);
    const Option *o = options_find(w->table, w->n, name, length);
    if (!o && !strcmp(name, "help")) {
        options_help(w->table, w->n, w->usage_line);
        exit(0);
    }
    if (!o && !strcmp(name, "version")) {
        printf("tikz.c " TIKZC_VERSION "\n");
        exit(0);
    }
    if (!o && !strcmp(what, "--config")) {
        if (!value) value = options_next(w, what);
        if (!w->apply && options_config(w->table, w->n, value, &err) != 0) options_die("%s", err.text);
        return;
    }
    if (!o && length > 3 && !strncmp(name, "no-", 3)) {
        o = options_find(w->table, w->n, name + 3, length - 3);
        if (o && o->type != OPT_FLAG) options_die("%s: --%s is not a flag and has no negation", what, o->name);
        if (o && value) options_die("%s takes no value", what);
        if (o) {
            options_apply(w, o, "false", what);
            return;
        }
    }
    if (!o)
        options_die("there is no option %s%s", what,
                    options_suggestion(w->table, w->n, name, length, suggestion, sizeof suggestion));
    if (o->type == OPT_RETIRED) options_die("there is no option %s any more: %s", what, o->help);
    if (!value) value = o->type == OPT_FLAG ? "true" : options_next(w, what);
    options_apply(w, o, value, what);
}

/* Handles -x value, -xvalue, and several flags in one argument: -vx value. */
static inline void options_short(OptionsWalk *w, const char *argument) {
    for (const char *p = argument + 1; *p; p++) {
        char what[4] = {'-', *p, '\0', '\0'};
        const Option *o = options_find_short(w->table, w->n, *p);
        if (!o && *p == 'h' && !p[1] && p == argument + 1) {
            options_help(w->table, w->n, w->usage_line);
            exit(0);
        }
        if (!o) options_die("there is no option %s", what);
        if (o->type != OPT_FLAG) {
            options_apply(w, o, p[1] ? p + 1 : options_next(w, what), what);
            return;
        }
        options_apply(w, o, "true", what);
    }
}

/* Parses argv into the values of the table. Arguments that are not options are added to `positional`; if that is
 * NULL, they are errors. There are two passes, so that the command line overrides a config file wherever --config
 * stands. Ends the program with status 2 on a usage error and with 0 after --help. */
static inline void options_parse(const Option *table, int n, int argc, char **argv, const char *usage_line,
                                 StringList *positional) {
    if (argc > 0) program_name_set(argv[0]);
    OptionsWalk w = {
        .table = table, .n = n, .argc = argc, .argv = argv, .usage_line = usage_line, .positional = positional};
    for (int pass = 0; pass < 2; pass++) {
        bool options_end = false;
        w.apply = pass == 1;
        w.seen = xcalloc(n, sizeof *w.seen);
        for (w.at = 1; w.at < argc; w.at++) {
            const char *argument = argv[w.at];
            if (options_end || argument[0] != '-' || argument[1] == '\0') {
                if (!positional) options_die("there is an argument too many: '%s'", argument);
                if (w.apply) string_list_add(positional, argument);
            } else if (!strcmp(argument, "--")) {
                options_end = true;
            } else if (argument[1] == '-') {
                options_long(&w, argument);
            } else {
                options_short(&w, argument);
            }
        }
        free(w.seen);
    }
}

#endif
