// SPDX-License-Identifier: Apache-2.0

// Package browser opens pages in Chromium for tests, and notes what goes wrong in them.
package browser

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// Browser is a Chromium without a window. Pages of one do not share what they store.
type Browser struct {
	ctx    context.Context
	cancel []context.CancelFunc
}

// Start starts Debian's Chromium. ctx bounds all that is done with it.
func Start(ctx context.Context) (*Browser, error) {
	b := &Browser{}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"),
		chromedp.NoSandbox, // root has none
		chromedp.Flag("no-proxy-server", true),
		// The scores of a machine that has other things to do.
		chromedp.Flag("disable-gpu", true),
	)
	ctx, cancel := chromedp.NewExecAllocator(ctx, options...)
	b.cancel = append(b.cancel, cancel)
	b.ctx, cancel = chromedp.NewContext(ctx)
	b.cancel = append(b.cancel, cancel)
	if err := chromedp.Do(b.ctx); err != nil {
		b.Close()
		return nil, fmt.Errorf("start Chromium: %w", err)
	}
	return b, nil
}

// Close ends it.
func (b *Browser) Close() {
	_ = chromedp.Cancel(b.ctx)
	for i := len(b.cancel) - 1; i >= 0; i-- {
		b.cancel[i]()
	}
}

// Page is one tab.
type Page struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	wrong    []string // what the console, the script and the content policy complained of
	requests []string // addresses
}

// Open opens an address in a tab of its own, that is so many pixels wide and high.
func (b *Browser) Open(url string, width, height int64) (*Page, error) {
	p := &Page{}
	p.ctx, p.cancel = chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	if err := chromedp.Do(p.ctx); err != nil {
		return nil, err
	}
	if err := chromedp.Listen(p.ctx, p.note); err != nil {
		return nil, err
	}
	for _, enable := range []cdp.Command[cdp.Empty, cdp.Empty]{log.Enable, audits.Enable} {
		if _, err := chromedp.Call(p.ctx, enable, cdp.Empty{}); err != nil {
			return nil, err
		}
	}
	if _, err := chromedp.Call(p.ctx, network.Enable, network.EnableParams{}); err != nil {
		return nil, err
	}
	return p, chromedp.Do(p.ctx, chromedp.EmulateViewport(width, height), chromedp.Navigate(url))
}

// Close closes the tab.
func (p *Page) Close() { p.cancel() }

func (p *Page) note(e any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := e.(type) {
	case *runtime.EventExceptionThrown:
		p.wrong = append(p.wrong, "exception: "+fmt.Sprint(e.ExceptionDetails.Text)+" "+description(e.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		p.wrong = append(p.wrong, fmt.Sprintf("console.%s", e.Type))
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			p.wrong = append(p.wrong, "log: "+e.Entry.Text+" "+e.Entry.URL)
		}
	case *audits.EventIssueAdded:
		if e.Issue.Code == audits.InspectorIssueCodeContentSecurityPolicyIssue {
			p.wrong = append(p.wrong, "the content policy was violated")
		}
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, e.Request.URL)
	}
}

func description(o *runtime.RemoteObject) string {
	if o == nil {
		return ""
	}
	return o.Description
}

// Wrong returns what went wrong in the page so far, and Requests what it asked for.
func (p *Page) Wrong() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.wrong...)
}

// Requests returns the addresses that the page has asked for.
func (p *Page) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.requests...)
}

// Value returns what a JavaScript expression is in the page.
func Value[T any](p *Page, expression string) (T, error) {
	return chromedp.Run(p.ctx, chromedp.Evaluate[T](expression))
}

// untilWithin is how long Until waits: far longer than a page takes on a busy machine.
const untilWithin = time.Minute

// Until waits until a JavaScript expression is true.
func (p *Page) Until(expression string) error {
	for begin := time.Now(); ; {
		ok, err := Value[bool](p, "Boolean("+expression+")")
		if ok {
			return nil
		}
		if err != nil && strings.Contains(err.Error(), "navigated or closed") {
			err = nil // between two pages there is none that could be asked
		}
		if err == nil && time.Since(begin) > untilWithin {
			err = context.DeadlineExceeded
		}
		if err == nil {
			select {
			case <-time.After(50 * time.Millisecond):
				continue
			case <-p.ctx.Done():
				err = p.ctx.Err()
			}
		}
		text, _ := Value[string](p, "document.body.innerText")
		return fmt.Errorf("wait until %s: %w; what went wrong: %s; the page shows: %s", expression, err, strings.Join(p.Wrong(), "; "), text)
	}
}

// Click clicks what a CSS selector names.
func (p *Page) Click(selector string) error {
	return chromedp.Do(p.ctx, chromedp.Click(chromedp.CSS(selector)))
}

// Type types into what a CSS selector names. "\r" is Enter.
func (p *Page) Type(selector, text string) error {
	return chromedp.Do(p.ctx, chromedp.SendKeys(chromedp.CSS(selector), text))
}

// Choose chooses a value of the list that a CSS selector names.
func (p *Page) Choose(selector, value string) error {
	chosen, err := Value[string](p, fmt.Sprintf(`(s => { s.value = %q; s.dispatchEvent(new Event("change")); return s.value })(document.querySelector(%q))`, value, selector))
	if err == nil && chosen != value {
		err = fmt.Errorf("%s has no %q", selector, value)
	}
	return err
}

// Press presses keys, "\t" for Tab and "\r" for Enter, wherever the focus is.
func (p *Page) Press(keys string) error {
	return chromedp.Do(p.ctx, chromedp.KeyEvent(strings.NewReplacer("\t", kb.Tab, "\r", kb.Enter).Replace(keys)))
}

// Dark has the page shown as for those who prefer it dark, or light.
func (p *Page) Dark(dark bool) error {
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	return err
}

// Resize makes the page so many pixels wide and high.
func (p *Page) Resize(width, height int64) error {
	return chromedp.Do(p.ctx, chromedp.EmulateViewport(width, height))
}

// Screenshot returns what the tab shows, as PNG.
func (p *Page) Screenshot() ([]byte, error) {
	data, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err == nil && len(data) == 0 {
		err = errors.New("the screenshot is empty")
	}
	return data, err
}
