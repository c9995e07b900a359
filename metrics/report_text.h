/* The report as report.md, for papers and repositories, and its figures as metrics.csv. */
#ifndef METRICS_REPORT_TEXT_H
#define METRICS_REPORT_TEXT_H

#include "report_data.h"

/* Writes text into a cell of a Markdown table: on one line, with | and what Markdown would read escaped. */
static inline void markdown_cell(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '\n')
            fputc(' ', f);
        else if (strchr("\\`*_[]<>|", *text))
            fprintf(f, "\\%c", *text);
        else
            fputc(*text, f);
    }
}

static inline void markdown_value(FILE *f, const Interval *v, bool best) {
    char value[32], low[32], high[32];
    chart_number(value, v->value);
    chart_number(low, v->low);
    chart_number(high, v->high);
    fprintf(f, best ? " **%s**" : " %s", value);
    if (isfinite(v->low)) fprintf(f, " (%s to %s)", low, high);
    fputs(" |", f);
}

static inline void markdown_table(FILE *f, const Report *r) {
    fputs("| |", f);
    for (int i = 0; i < r->model_count; i++) {
        fputc(' ', f);
        markdown_cell(f, r->models[i].name);
        fputs(" |", f);
    }
    fputs("\n|---|", f);
    for (int i = 0; i < r->model_count; i++) fputs("---|", f);
    for (int k = 0; k < r->figure_count; k++) {
        if (!report_has(r, k)) continue;
        fputs("\n| ", f);
        markdown_cell(f, r->figures[k].text.title);
        fputs(" |", f);
        const int best = report_best(r, k);
        for (int i = 0; i < r->model_count; i++) {
            const Interval v = report_interval(r, i, k);
            markdown_value(f, &v, i == best);
        }
    }
    fputs("\n", f);
}

/* A code block, fenced by more backquotes than the text has in a row. */
static inline void markdown_code(FILE *f, const char *language, const char *text) {
    int most = 2, row = 0;
    for (const char *s = text; *s; s++) {
        row = *s == '`' ? row + 1 : 0;
        if (row > most) most = row;
    }
    for (int i = 0; i <= most; i++) fputc('`', f);
    fprintf(f, "%s\n%s\n", language, text);
    for (int i = 0; i <= most; i++) fputc('`', f);
    fputs("\n\n", f);
}

static inline void markdown_program(FILE *f, const char *program) {
    char *shown = report_shown(program);
    markdown_code(f, "tex", shown);
    free(shown);
}

static inline void markdown_example(FILE *f, const Report *r, int64_t i) {
    const ReportSample *s = &r->samples[i];
    fprintf(f, "### Sample %lld\n\n![The input image](%s)\n\n", (long long)s->sample, s->input);
    markdown_program(f, s->reference);
    for (int k = 0; k < r->model_count; k++) {
        if (!r->models[k].outputs) continue;
        const ReportOutput *out = &r->models[k].outputs[i];
        fputs("**", f);
        markdown_cell(f, r->models[k].name);
        fputs("**", f);
        if (out->remark) fputs(": ", f), markdown_cell(f, out->remark);
        fputs("\n\n", f);
        if (out->drawing) fprintf(f, "![What the program draws](%s)", out->drawing);
        if (out->difference) fprintf(f, " ![Where the drawing differs from the input](%s)", out->difference);
        if (out->drawing) fputs("\n\n", f);
        markdown_program(f, out->program);
    }
}

static inline void markdown_write(FILE *f, const Report *r, const int64_t *worst, const int64_t *random, int count) {
    fputs("# ", f);
    markdown_cell(f, r->title);
    fprintf(f, "\n\n%lld samples of ", (long long)r->sample_count);
    markdown_cell(f, r->data);
    fputs(", on ", f);
    markdown_cell(f, r->device);
    fputs(":\n\n", f);
    markdown_code(f, "sh", r->command);
    fprintf(f, "Values with 95 %% intervals from %d resamples of the samples; the best of a row is bold.\n\n",
            BOOTSTRAP_RESAMPLES);
    markdown_table(f, r);
    for (int i = 0; i < r->note_count; i++) fprintf(f, "\n%s\n", r->notes[i]);
    if (!r->samples) return;
    fputs("\n## Worst examples\n\n", f);
    for (int i = 0; i < count; i++) markdown_example(f, r, worst[i]);
    fputs("## Random examples\n\n", f);
    for (int i = 0; i < count; i++) markdown_example(f, r, random[i]);
}

/* A field of a CSV file (RFC 4180). */
static inline void csv_field(FILE *f, const char *text) {
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, f);
        return;
    }
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"') fputc('"', f);
        fputc(*text, f);
    }
    fputc('"', f);
}

/* One line for each figure of each model; an undefined value is empty. */
static inline void csv_write(FILE *f, const Report *r) {
    fputs("metric,model,value,low,high\n", f);
    for (int k = 0; k < r->figure_count; k++)
        for (int i = 0; i < r->model_count; i++) {
            const Interval v = report_interval(r, i, k);
            const double values[] = {v.value, v.low, v.high};
            csv_field(f, r->figures[k].text.key);
            fputc(',', f);
            csv_field(f, r->models[i].name);
            for (int c = 0; c < 3; c++) {
                fputc(',', f);
                if (isfinite(values[c])) fprintf(f, "%.17g", values[c]);
            }
            fputc('\n', f);
        }
}

/* Writes FOLDER/report.md and FOLDER/metrics.csv. worst, random: indices of the samples shown as examples, [count]. */
static inline int report_write_text(const Report *r, const char *folder, const int64_t *worst, const int64_t *random,
                                    int count, Error *err) {
    static const char *const files[] = {"report.md", "metrics.csv"};
    int bad = 0;
    for (int i = 0; i < 2 && !bad; i++) {
        char *text = NULL, *path = format_string("%s/%s", folder, files[i]);
        size_t bytes = 0;
        FILE *f = open_memstream(&text, &bytes);
        if (!f) die("out of memory");
        if (i == 0)
            markdown_write(f, r, worst, random, count);
        else
            csv_write(f, r);
        if (fclose(f)) die("out of memory");
        bad = file_write(path, text, bytes, err);
        free(text);
        free(path);
    }
    return bad;
}

#endif
