/* The report as one HTML page, which needs no network and no script. */
#ifndef METRICS_REPORT_PAGE_H
#define METRICS_REPORT_PAGE_H

#include "../lib/image_prepare.h"
#include "report_data.h"
#include "report_style.h"
#include "text_diff.h"

/* ---- figures ---- */

static inline void page_value(FILE *f, const Interval *v, bool best) {
    char value[32], low[32], high[32];
    chart_number(value, v->value);
    fprintf(f, "<td class=\"number%s\">%s", best ? " best" : "", value);
    if (best) fputs(" <span class=\"interval\">best</span>", f);
    if (!isfinite(v->low)) return;
    chart_number(low, v->low);
    chart_number(high, v->high);
    fprintf(f, "<br><span class=\"interval\">%s to %s</span>", low, high);
}

static inline void page_models(FILE *f, const Report *r) {
    fputs("<div class=\"scroll\"><table>\n<tr><th>model<th>file<th>parameters<th>seconds\n", f);
    for (int i = 0; i < r->model_count; i++) {
        const ReportModel *m = &r->models[i];
        fputs("<tr><td>", f);
        html_text(f, m->name);
        fputs("<td>", f);
        html_text(f, m->path);
        fprintf(f, "<td class=\"number\">%.2f M<td class=\"number\">%.1f\n", m->parameters / 1e6, m->seconds);
    }
    fputs("</table></div>\n", f);
}

static inline void page_table(FILE *f, const Report *r) {
    const char *group = "";
    fprintf(f,
            "<h2 id=\"metrics\">Metrics</h2>\n<p>Under each value is its 95 %% interval, from %d resamples of the "
            "samples. The best value of a row is bold.</p>\n<div class=\"scroll\"><table>\n",
            BOOTSTRAP_RESAMPLES);
    for (int k = 0; k < r->figure_count; k++) {
        const Figure *figure = &r->figures[k];
        if (!report_has(r, k)) continue;
        if (strcmp(group, figure->group)) {
            group = figure->group;
            fputs("<tr><th>", f);
            html_text(f, group);
            for (int i = 0; i < r->model_count; i++) {
                fputs("<th>", f);
                html_text(f, r->models[i].name);
            }
            fputs("<th>what it is\n", f);
        }
        fputs("<tr><td>", f);
        html_text(f, figure->text.title);
        if (figure->text.better)
            fprintf(f, " <span class=\"faint\">%s</span>",
                    figure->text.better > 0 ? "(more is better)" : "(less is better)");
        const int best = report_best(r, k);
        for (int i = 0; i < r->model_count; i++) {
            const Interval v = report_interval(r, i, k);
            page_value(f, &v, i == best);
        }
        fputs("<td class=\"faint\">", f);
        html_text(f, figure->text.meaning);
        fputs("\n", f);
    }
    fputs("</table></div>\n", f);
}

/* Which figures differ between the first model and each other one. */
static inline void page_differences(FILE *f, const Report *r) {
    if (r->model_count < 2) return;
    fputs("<h2 id=\"differences\">Differences</h2>\n", f);
    if (r->sample_count < REPORT_LEAST_SAMPLES) {
        fprintf(f, "<p>Fewer than %d samples do not show whether models differ.</p>\n", REPORT_LEAST_SAMPLES);
        return;
    }
    fputs("<p>Metrics whose 95 % interval of the difference leaves out 0. The same samples are resampled for both "
          "models. Of twenty metrics in which the models do not differ, one is expected here by chance.</p>\n",
          f);
    for (int i = 1; i < r->model_count; i++) {
        int shown = 0;
        fputs("<h3>", f);
        html_text(f, r->models[i].name);
        fputs(" minus ", f);
        html_text(f, r->models[0].name);
        fputs("</h3>\n<div class=\"scroll\"><table>\n<tr><th>metric<th>difference<th>interval<th>verdict\n", f);
        for (int k = 0; k < r->figure_count; k++) {
            if (!r->figures[k].compute) continue;
            const Interval d = bootstrap_difference(&r->models[i].sums, &r->models[0].sums, r->figures[k].compute,
                                                    r->figures[k].which);
            if (!isfinite(d.value) || !bootstrap_significant(&d)) continue;
            const int side = d.low > 0 ? 1 : -1;
            fputs("<tr><td>", f);
            html_text(f, r->figures[k].text.title);
            fprintf(f, "<td class=\"number\">%+.4g<td class=\"number\">%+.4g to %+.4g<td>%s\n", d.value, d.low,
                    d.high,
                    !r->figures[k].text.better          ? "different"
                    : side == r->figures[k].text.better ? "better"
                                                        : "worse");
            shown++;
        }
        fputs("</table></div>\n", f);
        if (!shown) fputs("<p>No metric differs significantly.</p>\n", f);
    }
}

/* ---- charts ---- */

/* One line for each model that has the given series. */
static inline void page_lines(FILE *f, const Report *r, Chart chart, size_t series) {
    ChartSeries *lines = (ChartSeries *)xcalloc((size_t)r->model_count + 1, sizeof *lines);
    for (int i = 0; i < r->model_count; i++) {
        const ChartSeries *s = (const ChartSeries *)(const void *)((const char *)&r->models[i] + series);
        if (!s->count) continue;
        lines[chart.count] = *s;
        lines[chart.count++].name = r->models[i].name;
    }
    chart.series = lines;
    if (chart.count) chart_write(f, &chart);
    free(lines);
}

/* Figures with an axis that all models have are on the radar chart. */
static inline void page_radar(FILE *f, const Report *r) {
    enum { MOST = 10 };
    const char *axes[MOST];
    int chosen[MOST], count = 0;
    for (int k = 0; k < r->figure_count && count < MOST; k++) {
        bool all = r->figures[k].text.axis != NULL;
        for (int i = 0; i < r->model_count; i++) all = all && isfinite(report_value(r, i, k));
        if (all) axes[count] = r->figures[k].text.axis, chosen[count++] = k;
    }
    if (count < 3) return;
    const char **names = (const char **)xcalloc((size_t)r->model_count, sizeof *names);
    double *values = (double *)xcalloc((size_t)r->model_count * MOST, sizeof *values);
    for (int i = 0; i < r->model_count; i++) {
        names[i] = r->models[i].name;
        for (int a = 0; a < count; a++) values[i * count + a] = report_value(r, i, chosen[a]);
    }
    chart_radar(f, "Shares, from 0 at the centre to 1", axes, count, names, values, r->model_count);
    free(names);
    free(values);
}

static inline void page_charts(FILE *f, const Report *r) {
    ChartBar *bars = (ChartBar *)xcalloc((size_t)r->model_count + 1, sizeof *bars);
    fputs("<h2 id=\"charts\">Charts</h2>\n<div class=\"charts\">\n", f);
    page_radar(f, r);
    page_lines(f, r,
               (Chart){.title = "Reliability",
                       .x_title = "confidence",
                       .y_title = "accuracy",
                       .mark = CHART_LINES,
                       .diagonal = true,
                       .x = {0, 1},
                       .y = {0, 1}},
               offsetof(ReportModel, reliability));
    page_lines(f, r,
               (Chart){.title = "Confidence of the likeliest token",
                       .x_title = "probability",
                       .y_title = "share of the tokens",
                       .mark = CHART_STEPS,
                       .x = {0, 1}},
               offsetof(ReportModel, confidence));
    page_lines(f, r,
               (Chart){.title = "Entropy of the next token",
                       .x_title = "nats",
                       .y_title = "share of the tokens",
                       .mark = CHART_STEPS},
               offsetof(ReportModel, entropy));
    page_lines(f, r, (Chart){.title = "Training", .x_title = "step", .y_title = "loss", .mark = CHART_LINES},
               offsetof(ReportModel, curve));
    fputs("</div>\n<h3>Metrics that have a better side</h3>\n<div class=\"charts\">\n", f);
    for (int k = 0; k < r->figure_count; k++) {
        if (!r->figures[k].text.better || !report_has(r, k)) continue;
        for (int i = 0; i < r->model_count; i++) {
            const Interval v = report_interval(r, i, k);
            bars[i] = (ChartBar){r->models[i].name, v.value, v.low, v.high};
        }
        chart_bars(f, r->figures[k].text.title, bars, r->model_count);
    }
    fputs("</div>\n", f);
    free(bars);
}

/* ---- examples ---- */

static const char page_examples_note[] = "<p>The worst are those of the last model. A difference map shows what "
                                         "drawing and reference share in grey, what is missing "
                                         "in red and what is too much in blue. In the programs, what the reference "
                                         "has and the model lacks is struck out, and what "
                                         "the model adds is marked.</p>\n";

/* Puts a PNG file of the report's folder into the page, not larger than a page needs. */
static inline int page_image(FILE *f, const char *folder, const char *file, const char *alt, Error *err) {
    char *path = format_string("%s/%s", folder, file);
    Image p;
    const int bad = image_load(&p, path, err);
    if (!bad) {
        image_shrink(&p, REPORT_IMAGE_SIDE);
        html_image(f, &p, alt);
        image_free(&p);
    }
    free(path);
    return bad;
}

static inline int page_output(FILE *f, const char *folder, const ReportModel *m, const ReportSample *s,
                              const ReportOutput *out, Error *err) {
    DiffText mine, reference;
    int bad = 0;
    fputs("<div>\n<h4>", f);
    html_text(f, m->name);
    fputs("</h4>\n", f);
    if (out->drawing)
        bad = page_image(f, folder, out->drawing, "What the program draws", err);
    else if (out->compiled)
        fputs("<p>It does not compile.</p>\n", f);
    if (!bad && out->difference)
        bad = page_image(f, folder, out->difference, "Where the drawing differs from the input", err);
    if (out->remark) {
        fputs("<p class=\"faint\">", f);
        html_text(f, out->remark);
        fputs("</p>\n", f);
    }
    char *texts[] = {report_shown(out->program), report_shown(s->reference)};
    diff_open(&mine, &reference, texts[0], texts[1]);
    fputs("<pre>", f);
    diff_write_both(f, &mine, &reference);
    fputs("</pre>\n</div>\n", f);
    diff_close(&mine);
    diff_close(&reference);
    free(texts[0]);
    free(texts[1]);
    return bad;
}

static inline int page_example(FILE *f, const Report *r, const char *folder, int64_t i, Error *err) {
    const ReportSample *s = &r->samples[i];
    fprintf(f,
            "<section class=\"example\">\n<h3>Sample %lld</h3>\n<div class=\"outputs\">\n<div>\n<h4>Input and "
            "reference</h4>\n",
            (long long)s->sample);
    int bad = page_image(f, folder, s->input, "The input image", err);
    char *reference = report_shown(s->reference);
    fputs("<pre>", f);
    html_text(f, reference);
    free(reference);
    fputs("</pre>\n</div>\n", f);
    for (int k = 0; k < r->model_count && !bad; k++)
        if (r->models[k].outputs) bad = page_output(f, folder, &r->models[k], s, &r->models[k].outputs[i], err);
    fputs("</div>\n</section>\n", f);
    return bad;
}

static inline int page_examples(FILE *f, const Report *r, const char *folder, const char *id, const char *head,
                                const int64_t *samples, int count, Error *err) {
    int bad = 0;
    fprintf(f, "<h2 id=\"%s\">%s</h2>\n%s", id, head, page_examples_note);
    for (int i = 0; i < count && !bad; i++) bad = page_example(f, r, folder, samples[i], err);
    return bad;
}

/* ---- the page ---- */

static inline void page_head(FILE *f, const Report *r) {
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
          f);
    html_text(f, r->title);
    fprintf(f, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>", report_style);
    html_text(f, r->title);
    fputs("</h1>\n<nav><a href=\"#metrics\">Metrics</a>", f);
    if (r->model_count > 1) fputs("<a href=\"#differences\">Differences</a>", f);
    fputs("<a href=\"#charts\">Charts</a>", f);
    if (r->samples) fputs("<a href=\"#worst\">Worst examples</a><a href=\"#random\">Random examples</a>", f);
    fprintf(f, "</nav>\n<p>%lld samples of ", (long long)r->sample_count);
    html_text(f, r->data);
    fputs(", on ", f);
    html_text(f, r->device);
    fputs(":</p>\n<pre>", f);
    html_text(f, r->command);
    fputs("</pre>\n", f);
    page_models(f, r);
    for (int i = 0; i < r->note_count; i++) {
        fputs("<p>", f);
        html_text(f, r->notes[i]);
        fputs("</p>\n", f);
    }
}

/* Writes FOLDER/index.html. worst, random: indices of the samples that are shown as examples, [count]. */
static inline int report_write_page(const Report *r, const char *folder, const int64_t *worst, const int64_t *random,
                                    int count, Error *err) {
    char *text = NULL, *path = format_string("%s/index.html", folder);
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) die("out of memory");
    page_head(f, r);
    page_table(f, r);
    page_differences(f, r);
    page_charts(f, r);
    int bad = r->samples && page_examples(f, r, folder, "worst", "Worst examples", worst, count, err);
    if (!bad && r->samples) bad = page_examples(f, r, folder, "random", "Random examples", random, count, err);
    fputs("</body>\n</html>\n", f);
    if (fclose(f)) die("out of memory");
    if (!bad) bad = file_write(path, text, bytes, err);
    free(text);
    free(path);
    return bad;
}

#endif
